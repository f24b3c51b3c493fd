"""Pods of a service's own: the children that KServe makes in mode Standard, as pure functions.

`plan_dedicated` (`planning`) is the entry: a Deployment, a Service and an autoscaler, or everything that speaks against
them. `readiness` says what the Deployment's status means for the service's.
"""
