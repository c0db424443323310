"""tropd's methods inside verl: distillation losses, the sampled token's score, teacher prefixes, and their data.

verl loads `plugin` by itself, by the entry point `verl.plugins`, in every process that imports verl. Nothing here
imports verl before verl is imported, and of ours only `objective`, so that the package can be installed beside verl.
"""
