"""Start processes: the ranks of a run, and the jobs of a sweep.

``ranks`` starts a run's ranks, ``jobs`` plans a sweep's jobs and runs them side by side, ``local`` starts them on this
machine and ``slurm`` on a cluster, ``dashboard`` shows them, ``sweep`` puts these together in a folder, ``hydra_app``
is Hydra's own program with our launchers.
"""
