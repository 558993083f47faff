"""Train every bundled recipe, or those named: `python -m model_zoo [RECIPE ...]`."""

from model_zoo.train import main

if __name__ == "__main__":
    main()
