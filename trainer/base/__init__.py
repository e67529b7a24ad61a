"""What every other room uses: errors with exit codes, files, figures, provenance, cores and limits of a process."""
