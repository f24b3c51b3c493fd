"""The demo: 300 real models, one small server, every prediction checked against the framework's own.

`recipes` plans what to train, `datasets` and `training` make it real in worker processes (`training_worker`),
`workload` draws who is asked for what, `requesting` asks from a process of its own, `checking` compares,
`server` starts and stops the pod, `memory` watches it, `report` shows the outcome, and `run` puts them in order.
"""
