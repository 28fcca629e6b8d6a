"""A page and a table that rank models by their scores in tasks, with what can and can't be told apart."""
