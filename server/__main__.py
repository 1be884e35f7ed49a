"""`python -m server` is `daybook`. Not for anything else."""

from server.cli import main

if __name__ == "__main__":
    main()
