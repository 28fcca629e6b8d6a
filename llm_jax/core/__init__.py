"""What every room may use and what knows no domain: errors, files, numbers for people, tables, the console, command lines."""
