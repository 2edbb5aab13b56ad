"""The actions of `modelsat candidates`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.api.candidate import TEST_TASKS, Candidate, to_json
from engine.api.errors import AlreadyExistsError, InvalidInputError, Violation
from engine.api.prices import in_usd_per_million
from engine.cli import server_flags
from engine.cli.candidates import fields
from engine.cli.output import Column, add_force, print_json, print_table, write_text
from engine.cli.server_flags import connect
from engine.registry.candidate_files.notes import notes
from engine.registry.candidate_files.template import FORMS, template

HOW_TO_WRITE_ONE = "`modelsat candidates template` writes an example"
FILE = 'file of candidates, as `modelsat candidates template` writes; "-" reads the standard input'


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat candidates`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")

    def offline(
        name: str, run: Callable[[argparse.Namespace], None], summary: str
    ) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        added = actions.add_parser(name, help=summary, description=description)
        added.set_defaults(run=run)
        return added

    def action(
        name: str, run: Callable[[argparse.Namespace], None], summary: str
    ) -> argparse.ArgumentParser:
        added = offline(name, run, summary)
        server_flags.add_arguments(added)
        return added

    text = "print a table of all candidates with mean accuracy, context window and prices"
    _add_json(action("list", _list, text))
    get = action("get", _get, "print one candidate as JSON")
    _add_template(offline("template", _template, "write an example of a file of candidates"))
    create = action("create", _create, "register the candidates of a file")
    _add_update(action("update", _update, "change fields of a candidate, and leave the others"))
    export = action("export", _export, "write all candidates as JSON, for `replace`")
    delete = action("delete", _delete, "remove a candidate")
    replace_all = action("replace", _replace, "replace all candidates by those of a file")
    _add_json(action("revisions", _revisions, "list the revisions that you can roll back to"))
    rollback = action("rollback", _rollback, "bring back the candidates of an earlier revision")
    for with_id in (get, delete):
        with_id.add_argument("id", help="ID of the candidate, as `modelsat candidates list` shows")
    for with_file in (create, replace_all):
        with_file.add_argument("file", type=Path, help=FILE)
        server_flags.add_price_unit(with_file)
        text = "register the report of an aptitude test although many replies choose no option"
        with_file.add_argument("--accept-unreadable", action="store_true", help=text)
        _add_validate_only(with_file)
    text = "overwrite candidates of the same ID that are registered"
    create.add_argument("--force", action="store_true", help=text)
    _add_out(export)
    text = "number of the revision, as `modelsat candidates revisions` shows"
    rollback.add_argument("revision", type=int, help=text)
    _add_validate_only(rollback)


def _add_json(action: argparse.ArgumentParser) -> None:
    action.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_validate_only(action: argparse.ArgumentParser) -> None:
    text = "check that the change is possible, and change nothing"
    action.add_argument("--validate-only", action="store_true", help=text)


def _add_out(action: argparse.ArgumentParser) -> None:
    text = "file to write (default: the standard output)"
    action.add_argument("--out", type=Path, metavar="FILE", help=text)
    add_force(action, "the file")


def _add_template(action: argparse.ArgumentParser) -> None:
    text = "form of the file (default: that of the suffix of --out, else toml)"
    action.add_argument("--format", choices=FORMS, help=text)
    _add_out(action)


def _add_update(action: argparse.ArgumentParser) -> None:
    action.usage = "modelsat candidates update ID [options]"
    action.add_argument("id", help="ID of the candidate, as `modelsat candidates list` shows")
    text = 'A number can be "unknown", a list or text "".'
    group = action.add_argument_group("fields to change", description=text)
    fields.add_arguments(group, default="as it is")
    text = "take the results of its aptitude test, and its mean answer length, from this file"
    group.add_argument("--results", type=Path, metavar="FILE", help=text)
    text = "with --results: keep its mean answer length, and its results on tasks that the file did"
    text += " not test"
    group.add_argument("--keep-results", action="store_true", help=text)
    _add_validate_only(action)


def _list(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        candidates, set_aside = client.list_candidates(), client.set_aside()
    if parsed.json:
        print_json([_summary(c) | {"set_aside": set_aside.get(c.id)} for c in candidates])
        return
    if not candidates:
        print("no candidate is registered; `modelsat candidates create FILE` registers some")
        return
    columns = [Column("id", text=True), *map(Column, ("accuracy", "context"))]
    columns += [Column("$/M in"), Column("$/M out")]
    rows = []
    for c in candidates:
        prices = (c.input_usd_per_million, c.output_usd_per_million)
        cells = [f"{c.mean_accuracy():.3f}", *map(_shown, (c.context_window, *prices))]
        rows.append([c.id, *cells])
    print_table(columns, rows)
    for identifier, why in sorted(set_aside.items()):
        print(f"{identifier} is {why}")


def _summary(candidate: Candidate) -> dict[str, Any]:
    """Return what `list --json` prints of a candidate: all fields, with summaries in place of the
    results of single tasks."""
    described = {"id": candidate.id, **{n: getattr(candidate, n) for n in fields.NAMES}}
    return described | {
        "mean_accuracy": round(candidate.mean_accuracy(), 6),
        "level_standard_error": round(candidate.level_standard_error(), 6),
        "etag": candidate.etag,
    }


def _get(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        candidate = client.get_candidate(parsed.id)
    print_json(to_json(candidate), indent=1)


def _template(parsed: argparse.Namespace) -> None:
    suffix = parsed.out.suffix.removeprefix(".") if parsed.out else ""
    form = parsed.format or suffix or FORMS[0]
    if suffix not in ("", form) or form not in FORMS:
        problem = f"is {parsed.out}; expected a name that ends with .{parsed.format or FORMS[0]}."
        raise InvalidInputError(Violation("--out", problem))
    write_text(parsed.out, template(form), force=parsed.force)


def _read(parsed: argparse.Namespace) -> list[Candidate]:
    from engine.registry.candidate_files.documents import STDIN, read_document
    from engine.registry.catalog import parse_catalog, require_readable_test

    document = read_document(parsed.file)
    candidates = parse_catalog(document, parsed.price_unit)
    if not candidates:
        name = "standard input" if parsed.file == STDIN else str(parsed.file)
        raise InvalidInputError(Violation(name, f"lists no candidate; {HOW_TO_WRITE_ONE}."))
    require_readable_test(document, parsed.file, accept_unreadable=parsed.accept_unreadable)
    for candidate in candidates:
        _print_notes(candidate)
    return candidates


def _print_notes(candidate: Candidate, before: Candidate | None = None) -> None:
    known = set() if before is None else set(notes(before))
    for note in notes(candidate):
        if note not in known:
            print(f"note: {note}", file=sys.stderr)


def _create(parsed: argparse.Namespace) -> None:
    candidates = _read(parsed)
    with connect(parsed) as client:
        registered = {c.id for c in client.list_candidates()} & {c.id for c in candidates}
        if registered and not parsed.force:
            verb = "is" if len(registered) == 1 else "are"
            problem = f"{verb} registered already; add --force, or choose another ID."
            raise AlreadyExistsError(", ".join(sorted(registered)), problem)
        # Check all of them first, so that a file is registered as a whole or not at all.
        for validate_only in (True,) if parsed.validate_only else (True, False):
            for candidate in candidates:
                if candidate.id in registered:
                    client.update_candidate(candidate, validate_only=validate_only)
                else:
                    client.create_candidate(candidate, validate_only=validate_only)
    verb = "would be " if parsed.validate_only else ""
    for candidate in candidates:
        done = "replaced" if candidate.id in registered else "created"
        print(f"{verb}{done} {candidate.id}: {_level(candidate)}")


def _level(candidate: Candidate) -> str:
    from engine.registry.candidate_files.published import read_scale
    from engine.registry.candidate_files.tasks import own_tasks

    error = candidate.level_standard_error()
    benchmarks = {benchmark.keywords for benchmark in read_scale().benchmarks.values()}
    own = [task for task in own_tasks(candidate.aptitude) if task not in benchmarks]
    listed = f"; tasks of your own: {'; '.join(own)}" if own else ""
    return f"level {candidate.mean_accuracy():.3f}, standard error {error:.3f}{listed}"


def _update(parsed: argparse.Namespace) -> None:
    from engine.registry.candidate_files.tasks import merged_results, with_whole_test

    given = fields.given_fields(parsed)
    if parsed.results is not None:
        given = _results(parsed) | given
    elif parsed.keep_results:
        raise InvalidInputError(Violation("--keep-results", "needs --results."))
    if not given:
        problem = "names no field to change; add a flag such as --tags or --context-window."
        raise InvalidInputError(Violation("update", problem))
    prices = {k: v for k, v in given.items() if k.endswith("_usd_per_million")}
    with connect(parsed) as client:
        before = client.get_candidate(parsed.id)
        if parsed.keep_results:
            if before.mean_output_tokens is not None and parsed.mean_output_tokens is None:
                given.pop("mean_output_tokens", None)
            merged = merged_results(before.aptitude, given["aptitude"])
            if len(merged) > TEST_TASKS:
                problem = f"would leave {len(merged)} tasks with a result, at most {TEST_TASKS} fit"
                problem += "; list those to keep in the file and leave --keep-results out."
                raise InvalidInputError(Violation("--keep-results", problem))
            given["aptitude"] = with_whole_test(replace(before, aptitude=merged)).aptitude
        entered = in_usd_per_million(Candidate("prices", (), **prices), parsed.price_unit)
        given |= {name: getattr(entered, name) for name in prices}
        changed = {k: v for k, v in given.items() if v != getattr(before, k)}
        if not changed:
            print(f"{before.id} has these values already; nothing was changed")
            return
        after = replace(before, **changed)
        _print_notes(after, before)
        client.update_candidate(
            after, list(changed), etag=before.etag, validate_only=parsed.validate_only
        )
    print(f"{'would be ' if parsed.validate_only else ''}updated {before.id}")
    for name, value in changed.items():
        if name == "aptitude":
            print(f"  aptitude: {_level(before)} -> {_level(after)}")
            both = len(merged_results(before.aptitude, value))
            if lost := both - len(merged_results((), value)):
                advice = "; --keep-results keeps them" if both <= TEST_TASKS else ""
                print(f"  {lost} measured results were dropped{advice}")
        else:
            print(f"  {name}: {_shown(getattr(before, name))} -> {_shown(value)}")


def _results(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the results, and the mean answer length if it is known, of a file of one candidate."""
    from engine.registry.catalog import read_catalog

    candidates = [c for c in read_catalog(parsed.results) if c.id == parsed.id]
    if not candidates:
        problem = f"has no candidate {parsed.id}."
        raise InvalidInputError(Violation(str(parsed.results), problem))
    length = candidates[0].mean_output_tokens
    known = {} if length is None else {"mean_output_tokens": length}
    return {"aptitude": candidates[0].aptitude, **known}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, str):
        return value or "none"
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _export(parsed: argparse.Namespace) -> None:
    from engine.registry.catalog import catalog_text, document_of

    with connect(parsed) as client:
        candidates = client.list_candidates()
    text = catalog_text(document_of(candidates))
    write_text(parsed.out, text, force=parsed.force)


def _delete(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        client.delete_candidate(parsed.id)
    print(f"deleted {parsed.id}")


def _replace(parsed: argparse.Namespace) -> None:
    candidates = _read(parsed)
    with connect(parsed) as client:
        revision = client.replace_candidates(candidates, validate_only=parsed.validate_only)
    if parsed.validate_only:
        print(f"would replace all candidates by {len(candidates)}")
    else:
        print(f"replaced all candidates; revision {revision} has {len(candidates)}")


def _revisions(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        revisions = client.list_revisions()
    if parsed.json:
        names = ("number", "create_time", "candidates", "description", "principal")
        print_json([{name: getattr(r, name) for name in names} for r in revisions])
        return
    rows = [
        [
            str(r.number),
            f"{r.create_time:%Y-%m-%d %H:%M:%S}",
            str(r.candidates),
            r.description + (f", by {r.principal}" if r.principal else ""),
        ]
        for r in revisions
    ]
    columns = [Column("revision"), Column("created (UTC)"), Column("candidates")]
    print_table([*columns, Column("change", text=True)], rows)


def _rollback(parsed: argparse.Namespace) -> None:
    with connect(parsed) as client:
        revision = client.rollback(parsed.revision, validate_only=parsed.validate_only)
    verb = "would be" if parsed.validate_only else "is now"
    count = f"{revision.candidates} candidates"
    print(f"{revision.description}: revision {verb} {revision.number}, {count}")
