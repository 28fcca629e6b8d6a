"""Code that every room may use and that knows no domain: errors, files, formats, tables, the console, command
lines."""
