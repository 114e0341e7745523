"""The command line: each command parses its arguments, calls the library, and prints.

In reading order:
    main.py        the list of commands, and what becomes of an error
    arguments.py   arguments that several commands share
    terminal.py    lines and tables for a terminal
    NAME.py        the command `fedmoe NAME`: its arguments are those of the function

To add a command, write it in `NAME.py` as a click command of that name, and list the name in
`main.COMMANDS`. Its docstring is the help text; the first line says what the reader gets. A command
imports what it needs when it is called, because `fedmoe --help` must not wait for torch.
"""
