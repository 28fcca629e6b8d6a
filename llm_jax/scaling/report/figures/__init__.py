"""The figures of a report, by subject. Each is drawn with a caption that says what is seen in it, or says why it can't be."""
