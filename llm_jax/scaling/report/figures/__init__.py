"""The figures of a report, by subject. A figure's function returns it with a caption, or the reason why it
can't be drawn."""
