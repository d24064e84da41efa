"""Training of the classifier whose features the generation metrics of a data set compare."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def main() -> None:
    """Parse the command line, train, save the weights, and print the test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=("mnist", "fashion_mnist"))
    parser.add_argument(
        "output", type=Path, help="for example genexp/metrics/weights/mnist-v1.pt; its stem is the version"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data"), help="directory of the data set (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="default: as many as process 180,000 images")
    arguments = parser.parse_args()

    from genexp.data import bind_dataset, load_dataset
    from genexp.metrics.feature_extractor import save_extractor, train_classifier

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    values = {"name": arguments.dataset, "root": str(arguments.root), "limit": None, "resident_gb": 4.0}
    dataset = load_dataset(bind_dataset(values))
    extractor = train_classifier(dataset, version=arguments.output.stem, epochs=arguments.epochs)
    save_extractor(extractor, arguments.output)
    print(
        f"{extractor.version}: test accuracy {extractor.accuracy:.4f}, {arguments.output.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
