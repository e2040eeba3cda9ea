"""``python -m repmode_cl``: the command, for launchers that start a module, such as torchrun."""

from repmode_cl.cli.app import main

if __name__ == "__main__":
    main()
