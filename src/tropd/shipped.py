"""Files that come with the package, by name: `recipe:lora_one_gpu`, `shipped:student`. Every layer may import it."""

from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = Path(__file__).parent
RECIPES = next(
    (folder for folder in (PACKAGE / "_recipes", PACKAGE.parents[1] / "recipes") if folder.is_dir()),
    PACKAGE / "_recipes",
)
"""The recipes: inside an installed package, at the top of a checkout."""
MODELS = PACKAGE / "proving_ground" / "models"
NOT_IN_THE_WHEEL = ("pruned", "specialist-code", "specialist-instructions", "specialist-mathematics", "storeroom-*")


def recipe_names() -> list[str]:
    """Every recipe and launch file, as `recipe:` takes it: without `.yaml`.

    >>> "lora_one_gpu" in recipe_names() and "accelerate/fsdp2_8gpu" in recipe_names()
    True
    """
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def locate(name: str) -> str:
    """The path of what comes with the package; any other name is given back as it is.

    Args:
        name: `recipe:NAME` for a file among the recipes (`.yaml` may be left out), `shipped:NAME` for a model.

    Raises:
        ValueError: nothing of that name is in this installation; the sentence says what is.

    >>> locate("shipped:student").endswith("family/student"), locate("my/model")
    (True, 'my/model')
    """
    kind, colon, rest = name.partition(":")
    if not colon or kind not in ("recipe", "shipped"):
        return name
    if kind == "shipped":
        return str(_model_folder(name, rest))
    path = next((path for path in (RECIPES / rest, RECIPES / f"{rest}.yaml") if path.is_file()), None)
    if path is None or not path.resolve().is_relative_to(RECIPES.resolve()):
        meant = "".join(f" Did you mean {near!r}?" for near in get_close_matches(rest, recipe_names(), 1))
        raise ValueError(f"{name!r}, which is not a recipe.{meant} `tropd recipes` lists them.")
    return str(path)


def _model_folder(written: str, name: str) -> Path:
    folders = [path.parent for path in sorted(MODELS.glob("*/*/model.safetensors"))]  # `student` is of the family
    found = {one.name if one.parent.name == "family" else f"{one.parent.name}-{one.name}": one for one in folders}
    if name in found:
        return found[name]
    missing = f"{written!r}, which is not in this installation of tropd; it has {', '.join(found)}."
    if any(fnmatch(name, pattern) for pattern in NOT_IN_THE_WHEEL):
        missing += (
            " To keep the package small, that model is only in tropd's repository; in a clone: `pip install -e .`"
        )
    raise ValueError(missing)


def locate_field(field: str, name: str) -> str:
    """`locate`, with the field that holds the name at the start of what is raised."""
    try:
        return locate(name)
    except ValueError as error:
        raise ValueError(f"{field} is {error}") from error
