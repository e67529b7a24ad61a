"""The command line: click, tables and live views. One file per command or family of commands; it holds no rules about
runs."""
