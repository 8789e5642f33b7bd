"""The command line: arguments, commands, and the lines that they print."""
