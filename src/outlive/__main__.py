"""`python -m outlive`: the command line."""

from outlive.cli import main

if __name__ == "__main__":
    main()
