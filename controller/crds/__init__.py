"""The kinds that the controller reads, as CustomResourceDefinitions: `deploy/crds` is written from here.

Field for field what KServe v0.20 accepts, so that a manifest means the same with either; required fields, enumerations,
patterns and defaults are its own. What belongs to Kubernetes (pods and containers) is written out as far as people use
it in an InferenceService; deep inside of it (affinity, probes, volume sources, security contexts) objects are taken as
they come and checked when a pod is made of them, where KServe's definitions, eight times as long, check at once and
drop fields that Kubernetes does not know.

`python -m controller.crds` writes the files; a test sees that they are what it would write.
"""
