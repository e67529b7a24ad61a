"""What every other room stands on: errors, files, and what is known of this machine and this checkout."""
