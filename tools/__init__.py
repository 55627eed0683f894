"""What only a checkout needs: programs that are built from source, and commands of a person beside a cluster."""
