"""The command line: click, tables and live views. A file per verb or family of verbs; no rules about runs."""
