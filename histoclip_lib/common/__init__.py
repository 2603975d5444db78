"""What every room uses: errors, whole files, caches, tables and YAML from users, executors."""
