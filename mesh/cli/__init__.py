"""The command line: what an operator types, over the same interfaces that any client has.

`main` holds the commands and turns every error into one line and an exit code; each other file is one command or one
concern of several. Nothing heavy is imported before the command that needs it runs.
"""
