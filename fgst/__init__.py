"""fgst: experiment sweeps of the FG-STFormer for skeleton-based action recognition."""

import os

# OpenMP threads that wait must sleep. By default they spin, and several trainings on one machine then starve each
# other, measured at 3 to 16 times slower. It is read when torch is imported, hence here; whoever sets it keeps it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
