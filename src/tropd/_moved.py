"""Modules by the names that they had before they were put into rooms: they can be imported until release 0.3.

Every layer is reached through this, and it imports none.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "comparison.anatomy": "comparison.report.token_analysis",
    "comparison.budget": "comparison.cell.token_budget",
    "comparison.course": "comparison.report.logged_series",
    "comparison.curves": "comparison.report.curves",
    "comparison.environment": "comparison.cell.environment",
    "comparison.growth": "comparison.plan_changes",
    "comparison.measure": "comparison.cell.scores",
    "comparison.names": "comparison.shipped_models",
    "comparison.page": "comparison.report.page",
    "comparison.points": "comparison.cell.accuracy_curve",
    "comparison.prepare": "comparison.cell.prepare",
    "comparison.reading": "comparison.plan_file",
    "comparison.results": "comparison.report.results",
    "comparison.sources": "comparison.cell.prompts",
    "comparison.tables": "comparison.report.tables",
    "comparison.taken": "comparison.imported_runs",
    "comparison.trainer_fields": "comparison.cell.trainer_fields",
    "comparison.worker": "comparison.cell.worker",
    "compression": "models.pruning",
    "endings": "teacher.endings",
    "loading_report": "models.loading_report",
    "model_folder": "models.folder",
    "modeling": "models.hidden_states",
    "objective.fused": "objective.head.fused_loss",
    "objective.logit_gradients": "objective.head.slice_losses",
    "objective.products": "objective.head.matmul",
    "packing": "models.packing",
    "preflight.files": "models.files",
    "rollout.addressed": "rollout.engine.noise",
    "rollout.batch": "rollout.engine.slots",
    "rollout.capability": "rollout.engine.self_test",
    "rollout.decoding": "rollout.engine.loop",
    "rollout.notes": "rollout.engine.loop",
    "rollout.plain": "rollout.engine.loop",
    "rollout.slot_cache": "rollout.engine.slots",
    "rollout.quality": "training.records",
    "sampling": "models.sampling",
    "teacher.agreement": "teacher.vocabulary",
    "teacher.base": "teacher.adapter_base",
    "teacher.several": "teacher.teachers",
    "training.batch": "training.records",
    "training.batch_stage": "training.step",
    "training.by_teacher": "teacher.per_teacher_settings",
    "training.callbacks": "training.logging.callbacks",
    "training.checkpoints": "training.checkpointing.checkpoints",
    "training.checks": "training.guards.arguments",
    "training.directory_lock": "training.checkpointing.directory_lock",
    "training.ending_files": "training.checkpointing.saving",
    "training.errors": "training.guards.errors",
    "training.faults": "training.guards.faults",
    "training.final_model": "training.checkpointing.final_model",
    "training.fingerprints": "training.checkpointing.fingerprints",
    "training.guards.trl_contract": "training.guards.versions",
    "training.host": "training.guards.versions",
    "training.host_settings": "training.guards.host_settings",
    "training.hub": "training.checkpointing.hub",
    "training.interruption": "training.checkpointing.interruption",
    "training.load_teachers": "training.set_up",
    "training.metrics": "training.logging.metrics",
    "training.model_card": "training.logging.model_card",
    "training.monitoring": "training.logging.collect",
    "training.no_trace": "preflight.no_trace",
    "training.out_of_memory": "training.guards.faults",
    "training.own_base": "teacher.shared_base",
    "training.probe": "preflight.probe",
    "training.probed": "preflight.probe_records",
    "training.ranks": "training.distributed.ranks",
    "training.reading": "training.records",
    "training.reading_check": "training.guards.reading",
    "training.rolling_out": "training.rollout_stage",
    "training.rollout_log": "training.logging.rollout_log",
    "training.run_directory": "training.logging.run_directory",
    "training.sampler": "training.checkpointing.epoch_sampler",
    "training.saving": "training.checkpointing.saving",
    "training.scoring": "training.step",
    "training.settings": "training.method_settings",
    "training.sharding": "training.distributed.sharding",
    "training.step_guards": "training.guards.step_guards",
    "training.stream": "training.checkpointing.saving",
    "training.teachers": "training.set_up",
    "training.tool_loop": "training.distributed.tool_loop",
    "training.trl_contract": "training.guards.versions",
}
"""Old name to new, below `tropd`."""


class MovedModules(MetaPathFinder, Loader):
    """Finds a module that has moved, with a warning; asked only where nothing else is found."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        return ModuleSpec(name, self) if name.removeprefix("tropd.") in MOVED and name.startswith("tropd.") else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module that it is now in the place of the old name."""
        new = f"tropd.{MOVED[module.__name__.removeprefix('tropd.')]}"
        warnings.warn(f"{module.__name__} is {new} now; the old name goes with release 0.3.", DeprecationWarning, 2)
        sys.modules[module.__name__] = importlib.import_module(new)


def find_moved() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
