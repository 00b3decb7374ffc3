"""Flags of the scripts that sample: samplers, edits, labels and seeds. Needs no TensorFlow."""

import dataclasses
import pathlib

from absl import flags

from kddpm.base.errors import InputError
from kddpm.cli.commands import check_least, parse_numbers
from kddpm.sampling import samplers
from kddpm.theory.parametrization import VARIANCES
from kddpm.theory.schedules import SPACINGS

_OF_ALL = {field.name for field in dataclasses.fields(samplers.Sampler)}
# Flags of a single sampler: {flag: name of the sampler}.
_OWNERS = {
    field.name: name
    for name, kind in samplers.BY_NAME.items()
    for field in dataclasses.fields(kind)
    if field.name not in _OF_ALL
}


_CLIPS = {"true": True, "false": False, "dynamic": "dynamic"}


def define_weights_flags() -> None:
    """Define the flag that chooses the weights of a run."""
    flags.DEFINE_float("ema_length", None, "average of the weights to rebuild, such as 0.1; the run's if not given")


def define_sampler_flags(sampler: str, num_steps: str) -> None:
    """Define --sampler, --num_steps and the other flags of samplers; the arguments describe the defaults."""
    flags.DEFINE_string("sampler", None, f"{', '.join(samplers.BY_NAME)}; {sampler} if not given")
    flags.DEFINE_integer("num_steps", None, f"steps, at most T; {num_steps} if not given")
    karras = " and ".join(name for name, kind in samplers.BY_NAME.items() if kind().spacing == "karras")
    flags.DEFINE_enum(
        "spacing", None, SPACINGS, f"which steps, where fewer than T; if not given, karras for {karras}, else trailing"
    )
    flags.DEFINE_enum(
        "clip",
        "true",
        list(_CLIPS),
        "clip the predicted image to [-1, 1] at every step; dynamic = to its own 99.5 % quantile",
        case_sensitive=False,
    )
    flags.DEFINE_float("guidance_scale", None, "of classes: 1 = none, more = clearer; the run's if not given")
    flags.DEFINE_enum("variance", None, VARIANCES, "of the ancestral sampler; the run's if not given")
    flags.DEFINE_float("eta", None, "of ddim: 0 (deterministic, if not given) to 1 (as much noise as ancestral)")
    flags.DEFINE_float("churn", None, "of heun: noise taken in on the way, S_churn of EDM; 0 (none) if not given")
    flags.DEFINE_float("churn_min", None, "of heun: noise level above which that is so, S_tmin; 0 if not given")
    flags.DEFINE_float("churn_max", None, "of heun: noise level below which that is so, S_tmax; any if not given")
    flags.DEFINE_float("churn_noise", None, "of heun: factor of that noise, S_noise; 1 if not given")
    flags.DEFINE_integer("corrections", None, "of predictor_corrector: Langevin steps a step; 1 if not given")
    flags.DEFINE_float("snr", None, "of predictor_corrector: size of a Langevin step; 0.16 if not given")


def check_num_steps(num_timesteps: int) -> None:
    """Check that --num_steps, if given, lies in 1 .. num_timesteps.

    Raises:
        InputError: it does not.
    """
    num_steps = flags.FLAGS.num_steps
    if num_steps is not None and not 1 <= num_steps <= num_timesteps:
        raise InputError(f"--num_steps must lie in 1 .. {num_timesteps} (T). Received: {num_steps}")


def sampler_options(name: str, edit: str | None = None) -> dict:
    """Return the arguments of a sampler from its flags.

    Args:
        name: name of the sampler.
        edit: one of `EDITS`, None = generating.

    Raises:
        InputError: unknown sampler, one that the edit cannot use, or a flag of another sampler.
    """
    if name not in samplers.BY_NAME:
        raise InputError(f"--sampler must be one of {', '.join(samplers.BY_NAME)}. Received: {name}")
    if edit == "inpaint" and name not in samplers.MEMORYLESS:
        raise InputError(f"--sampler must be one of {', '.join(samplers.MEMORYLESS)} for --inpaint. Received: {name}")
    scale = flags.FLAGS.guidance_scale
    if scale is not None and not 0 <= scale < float("inf"):
        raise InputError(f"--guidance_scale must be a number of at least 0. Received: {scale}")
    options = {"clip": _CLIPS[flags.FLAGS.clip]}
    if flags.FLAGS.spacing is not None:
        options["spacing"] = flags.FLAGS.spacing
    for flag, owner in _OWNERS.items():
        if (value := flags.FLAGS[flag].value) is not None:
            if name != owner:
                raise InputError(f"--{flag} belongs to --sampler={owner}. Received: --sampler={name}")
            options[flag] = value
    return options


def parse_sampler(text: str) -> tuple[str, int | None]:
    """Parse NAME or NAME:STEPS, as of "ddim:50"; None = the number of steps was not given.

    Raises:
        InputError: an unknown sampler, or steps that are not a number of at least 1.
    """
    name, _, steps = text.partition(":")
    is_number = steps.isascii() and steps.isdigit() and len(steps) < 10 and int(steps) > 0
    if name not in samplers.BY_NAME or (":" in text and not is_number):
        names = ", ".join(samplers.BY_NAME)
        raise InputError("samplers", f"must be NAME or NAME:STEPS, NAME being one of {names}", repr(text))
    return name, int(steps) if steps else None


def define_frame_flags() -> None:
    """Define the flags of a filmstrip or an animation, and of pictures that share a part of their way."""
    flags.DEFINE_string(
        "frames", None, "stages from noise to picture, for .png (a filmstrip) and .gif: how many (60), or t,t,..."
    )
    flags.DEFINE_enum(
        "frames_of",
        "x_t",
        ("x_t", "x0"),
        "what the stages show: x_t, the noisy picture, or x0, the network's guess from it",
    )
    flags.DEFINE_integer(
        "shared_until", None, "paint pictures that share x_t down to this t, that of the first seed, and differ below"
    )


def frames() -> int | list[int] | None:
    """Return the number of stages, or the t of each; None without the flag.

    Raises:
        InputError: the flag has another format.
    """
    text = flags.FLAGS.frames
    if text is None:
        return None
    numbers = parse_numbers("frames", text)
    if len(numbers) > 1:
        return numbers
    if numbers[0] < 2:
        raise InputError(f"--frames must be at least 2. Received: {text}")
    return numbers[0]


def check_levels(num_timesteps: int) -> None:
    """Check that the flags that name a t lie in 0 .. num_timesteps - 1.

    Raises:
        InputError: one does not.
    """
    stages = frames()
    for name, values in {
        "frames": stages if isinstance(stages, list) else [],
        "shared_until": [flags.FLAGS.shared_until],
        "interpolate_t": [flags.FLAGS.interpolate_t],
    }.items():
        for t in values:
            if t is not None and not 0 <= t < num_timesteps:
                raise InputError(f"--{name} must lie in 0 .. {num_timesteps - 1} (T - 1). Received: {t}")


_SEEDS_OF_ONE = 8  # default number of variants of a single picture
EDITS = ("variations", "inpaint", "interpolate")
# Flags of a single edit: {flag: edit}. Below, flags that edits, or interpolation by inversion, do not take.
_OF_AN_EDIT = {
    "strength": "variations", "mask": "inpaint", "jump_length": "inpaint", "resamplings": "inpaint",
    "count": "interpolate", "interpolate_t": "interpolate",
}  # fmt: skip


_OF_NO_EDIT = ("frames", "frames_of", "shared_until")
_OF_NO_INVERSION = ("seeds", "sampler", "spacing", "clip", "guidance_scale", *_OWNERS)


def define_edit_flags() -> None:
    """Define the flags that choose an edit and its picture, and the other flags of edits."""
    flags.DEFINE_string("variations", None, "an image file, or NAME.npz with images: paint pictures like it")
    flags.DEFINE_float("strength", 0.5, "of --variations: 0 = the picture itself, 1 = another one")
    flags.DEFINE_string(
        "inpaint", None, "an image file, or NAME.npz with images: paint the part that --mask leaves open"
    )
    flags.DEFINE_string("mask", None, "of --inpaint, an image file: white = keep, black = paint")
    flags.DEFINE_integer(
        "jump_length", None, "of --inpaint: steps to go back, so that the new fits the old; 10 if not given"
    )
    flags.DEFINE_integer("resamplings", 5, "of --inpaint: how often each stretch of steps is taken; 1 = once")
    flags.DEFINE_string("interpolate", None, "two image files, A,B: paint pictures on the way from A to B")
    flags.DEFINE_integer("count", 9, "of --interpolate: pictures, A and B included")
    flags.DEFINE_integer(
        "interpolate_t", None, "of --interpolate: mix A and B noised to this t, any sampler; if not given, by inversion"
    )


def chosen_edit() -> str | None:
    """Return the one of `EDITS` that the flags choose, None = none.

    Raises:
        InputError: two edits at once, a flag of another edit, or a value out of range.
    """
    given = [name for name in flags.FLAGS if flags.FLAGS[name].present]
    chosen = [name for name in EDITS if name in given]
    if len(chosen) > 1:
        raise InputError(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    edit = chosen[0] if chosen else None
    for name in given:
        owner = _OF_AN_EDIT.get(name, edit)
        if owner != edit:
            raise InputError(f"--{name} belongs to --{owner}. Received: {f'--{edit}' if edit else 'no such flag'}")
        inverts = edit == "interpolate" and flags.FLAGS.interpolate_t is None
        if edit and (name in _OF_NO_EDIT or (inverts and name in _OF_NO_INVERSION)):
            without = " without --interpolate_t" if inverts and name not in _OF_NO_EDIT else ""
            raise InputError(f"--{name} has no meaning for --{edit}{without}. Received: both")
    if edit == "inpaint" and not flags.FLAGS.mask:
        raise InputError("--mask is needed for --inpaint: an image file, white = keep, black = paint")
    if not 0 <= flags.FLAGS.strength <= 1:
        raise InputError(f"--strength must lie in 0 .. 1. Received: {flags.FLAGS.strength}")
    check_least(jump_length=1, resamplings=1, count=2)
    return edit


def check_form(out: pathlib.Path, edit: str | None) -> None:
    """Check that --out has a suffix that the edit can write, to which --frames and --columns, if given, apply.

    Raises:
        InputError: another suffix, a flag that does not apply to it, or --frames in another format.
    """
    animated = edit in (None, "interpolate")
    if out.suffix.lower() not in (".png", ".gif" if animated else ".png", ".npz", ""):
        forms = ".png, .gif or .npz" if animated else ".png or .npz"
        raise InputError(
            f"--out must end in {forms}, or be a folder{f', for --{edit}' if edit else ''}. Received: {out}"
        )
    frames()  # its format
    suffix, stages, columns = out.suffix.lower(), flags.FLAGS.frames, flags.FLAGS.columns
    if stages is not None and suffix not in (".png", ".gif"):
        raise InputError(f"--frames belongs to .png, a filmstrip, or .gif. Received: --out={out}")
    if flags.FLAGS.frames_of == "x0" and stages is None and suffix != ".gif":
        raise InputError(f"--frames_of belongs to --frames, or to .gif. Received: --out={out}")
    if flags.FLAGS.shared_until is not None and (stages is not None or suffix == ".gif"):
        raise InputError(f"--shared_until has no stages to show. Received: --out={out}, --frames={stages}")
    if columns is not None and (suffix in (".npz", "") or (stages and suffix == ".png") or (edit and suffix == ".gif")):
        raise InputError(f"--columns belongs to a grid of pictures. Received: --out={out}, which has none")


def seeds_of_photos(seeds: list[int] | None, photos: int, edit: str | None = None) -> list[int]:
    """Return the seeds of edited pictures: one a picture, any number for a single one; None = from 0, 8 for that one.

    An interpolation has one seed for both of its ends.

    Raises:
        InputError: the number of seeds does not match.
    """
    if edit == "interpolate":
        if seeds is not None and len(seeds) != 1:
            raise InputError(f"--seeds must be a single one for --interpolate. Received: {len(seeds)}")
        return (seeds or [0]) * photos
    if seeds is None:
        return list(range(photos if photos > 1 else _SEEDS_OF_ONE))
    if len(seeds) != photos != 1:
        raise InputError(f"--seeds must be one for each of {photos} pictures to edit. Received: {len(seeds)}")
    return seeds


def parse_labels(text: str | None, count: int, needed: bool = False) -> list[int] | None:
    """Return the labels of `count` pictures from --labels, one for all or one for each; None without the flag.

    Raises:
        InputError: as in `parse_numbers`, wrong number of labels, or none although they are needed.
    """
    if not text:
        if needed:
            raise InputError("--labels is needed to edit with a run with classes: that of the picture, or another")
        return None
    labels = parse_numbers("labels", text)
    if len(labels) not in (1, count):
        raise InputError(f"--labels must be one for all, or one for each of {count} pictures. Received: {len(labels)}")
    return labels * count if len(labels) == 1 else labels
