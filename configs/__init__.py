"""The presets, installed as data of s2vfast.configs; read through `s2vfast.presets`."""
