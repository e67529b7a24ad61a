"""`python -m trainer`: arguments, commands, exit codes."""
