"""Which store a pod's settings name, and how it is reached."""

from __future__ import annotations

import zlib
from dataclasses import replace
from importlib.metadata import version

from mesh.node_settings import read_file
from mesh.pod import default_pod_name
from mesh.settings import Settings
from placement.store.base import KeyValueStore
from placement.store.embedded import EmbeddedStore
from placement.store.etcd import EtcdStore
from placement.store.etcd_options import EtcdOptions, Pem
from placement.store.format import open_format


async def open_store(settings: Settings) -> KeyValueStore:
    """The store that the settings name. Raises PlacementError."""
    if not settings.is_pooled:
        return await EmbeddedStore.open(settings.data_dir)
    options = etcd_options(settings)
    # Each pod begins with another member, so that they share the pods between them.
    first = zlib.crc32((settings.pod_name or default_pod_name()).encode()) % len(options.endpoints)
    endpoints = (*options.endpoints[first:], *options.endpoints[:first])
    store = await EtcdStore.open(replace(options, endpoints=endpoints))
    try:
        await open_format(store, f"hexcomb {version('hexcomb')}")
    except BaseException:
        await store.close()
        raise
    return store


def etcd_options(settings: Settings) -> EtcdOptions:
    """How to reach etcd. Raises InvalidAddress."""
    if settings.store_connection is not None:
        text = read_file(settings.store_connection, "store_connection")
        return EtcdOptions.from_connection_json(text, settings.store_connection.parent, default_prefix="hexcomb")
    options = EtcdOptions.from_url(settings.store)
    if settings.store_password_file is not None:
        options = replace(options, password=read_file(settings.store_password_file, "store_password_file").strip())
    if settings.store_ca is not None:
        options = replace(options, ca=Pem(settings.store_ca))
    if settings.store_certificate is not None or settings.store_key is not None:
        options = replace(
            options,
            certificate=None if settings.store_certificate is None else Pem(settings.store_certificate),
            key=None if settings.store_key is None else Pem(settings.store_key),
        )
    return options
