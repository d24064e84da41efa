"""k-means with scikit-learn: load images, fit, write centers and labels."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

HEADER_BYTES = 16  # of an IDX file with three dimensions


def main() -> None:
    """Fit one model for each seed, or one from given centers, and write `result.npz` and `result.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path, help="IDX file")
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--limit", type=int, help="number of images")
    parser.add_argument("--init", type=Path, help="file of centers (.npy); without it k-means++")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--algorithm", default="lloyd")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    pixels = np.fromfile(options.images, np.uint8, offset=HEADER_BYTES).reshape(-1, 784)[: options.limit]
    points = pixels.astype(np.float32) / 255
    started_at, processor_at = time.perf_counter(), time.process_time()
    models = []
    for seed in range(options.seeds):
        model = KMeans(
            options.clusters,
            init=np.load(options.init) if options.init else "k-means++",
            n_init=1,
            max_iter=options.iterations,
            tol=options.tolerance,
            algorithm=options.algorithm,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing convergence
            models.append(model.fit(points))
    result = {
        "fit_seconds": time.perf_counter() - started_at,
        "fit_processor_seconds": time.process_time() - processor_at,
        "inertia_per_point": float(np.mean([model.inertia_ for model in models]) / len(points)),
    }
    np.savez("result.npz", centers=models[0].cluster_centers_, labels=models[0].labels_)
    Path("result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
