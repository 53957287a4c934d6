"""Which implementation of each operation is right and fastest on this machine, at the sizes of a run.

One training step is recorded (`record.Recorder`): what each operation was called with. `measure`, a process of its own,
compares every implementation with the reference at these sizes and times those that agree, each in a process of its
own with a time limit, so that one that crashes or hangs costs itself alone. `cache` keeps the results by device and
versions. `record.Choices` is what ``auto`` asks in the run that follows. `s2vfast.train.calibration` puts this
together for a trainer.
"""
