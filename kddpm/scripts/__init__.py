"""What the commands do: `kddpm-train`, `kddpm-sample`, `kddpm-evaluate`. Uses every wing above.

A room a command: `main` is its door, for the script of the same name at the top level and for the installed command.
`python -m export` is the fourth.
"""
