"""The figures of the workshop paper: RoBERTa-base, four seeds, mean and deviation."""

from __future__ import annotations

from collections.abc import Mapping

TASKS = ("rte", "mrpc", "cola", "stsb", "sst2")
TITLES: Mapping[str, str] = {
    "rte": "RTE",
    "mrpc": "MRPC",
    "cola": "CoLA",
    "stsb": "STS-B",
    "sst2": "SST-2",
}

Figure = tuple[float, float]

# Table 1 and, for `bo`, Table 3. In the order of TASKS; points.
COMPARISON: Mapping[str, tuple[Figure, ...]] = {
    "finetune": ((74.94, 2.28), (91.65, 0.65), (56.34, 2.90), (89.86, 0.16), (94.49, 0.04)),
    "swa": ((77.19, 1.04), (91.31, 1.82), (55.05, 3.09), (89.89, 0.20), (94.49, 0.08)),
    "greedy": ((76.52, 1.31), (91.84, 0.14), (56.47, 3.20), (89.87, 0.18), (94.36, 0.05)),
    "learned": ((77.82, 3.58), (90.62, 1.87), (59.02, 2.60), (89.65, 0.09), (94.19, 0.00)),
    "bo": ((77.20, 1.97), (91.92, 0.66), (57.56, 0.30), (89.63, 0.05), (94.47, 0.15)),
    "mobo": ((77.86, 0.28), (92.05, 1.05), (58.20, 1.72), (89.58, 0.12), (94.55, 0.12)),
    "bilevel": ((78.43, 0.26), (92.38, 0.68), (59.21, 3.53), (89.86, 0.01), (94.97, 0.08)),
    "oracle": ((80.66, 0.52), (92.90, 0.22), (60.01, 1.88), (89.93, 0.20), (95.08, 0.06)),
}
AVERAGE: Mapping[str, float] = {
    "finetune": 81.46,
    "swa": 81.59,
    "greedy": 81.81,
    "learned": 82.26,
    "bo": 82.16,
    "mobo": 82.45,
    "bilevel": 82.97,
    "oracle": 83.72,
}
"""As printed; they are not always the mean of the rounded figures beside them."""

# Table 2: loss, then error rate in points, of finetune and of swa.
DISCREPANCY: Mapping[str, Mapping[str, tuple[Figure, Figure]]] = {
    "finetune": {
        "rte": ((0.97, 0.01), (21.21, 0.69)),
        "mrpc": ((0.54, 0.02), (7.82, 0.01)),
        "sst2": ((0.28, 0.00), (4.94, 0.26)),
    },
    "swa": {
        "rte": ((0.87, 0.03), (21.71, 1.47)),
        "mrpc": ((0.53, 0.00), (7.90, 0.01)),
        "sst2": ((0.22, 0.00), (5.16, 0.24)),
    },
}

# Table 4: the outer search around every baseline; points.
OUTER: Mapping[str, Mapping[str, float]] = {
    "hpbo": {"rte": 77.20, "mrpc": 91.41},
    "bilevel:swa": {"rte": 76.68, "mrpc": 90.57},
    "bilevel:greedy": {"rte": 76.68, "mrpc": 90.57},
    "bilevel:learned": {"rte": 78.22, "mrpc": 90.03},
    "bilevel": {"rte": 79.60, "mrpc": 93.39},
}
