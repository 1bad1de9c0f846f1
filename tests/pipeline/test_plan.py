import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.audit_arithmetic import MILLION, Target
from pipeline.config import load_config
from pipeline.options import override
from pipeline.plan import command
from pipeline.plan_numbers import plan
from pipeline.plan_options import MOST_SEGMENTS, PlanOptions

Capture = pytest.CaptureFixture[str]
DEMO = Path(cli.__file__).parent.parent / "configs" / "demo.toml"
TWENTY = PlanOptions(
    rate=1.0, segments=1, steps=(20, 20), trace_every=1, second_look=0.0, boundary_cost=0.0, vest_rounds=19
)


def said(options: PlanOptions) -> str:
    """What is printed on a terminal of 110 columns, without the blanks that fill lines."""
    screen = io.StringIO()
    assert command(options, Console(file=screen, width=110)) == 0
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines())


GOLDEN = """\
2 contributors of 20 segments a round, each looked at with rate 1 after probation
cheat of every round         one audit finds it  in 20 rounds    95 % in    99 % in  deterred by vesting of
an audit draws 1 segment
  every segment false        100 %                      100 %    1 round    1 round                0 rounds
  one false segment          1/20 = 5 %               64.15 %  59 rounds  90 rounds               19 rounds
  false after the last step  100 %                      100 %    1 round    1 round                0 rounds
if all segments were drawn
  every segment false        100 %                      100 %    1 round    1 round                0 rounds
  one false segment          100 %                      100 %    1 round    1 round                0 rounds
  false after the last step  100 %                      100 %    1 round    1 round                0 rounds
Credit vests after 19 rounds. Where a cheat gains 1 round of credit this deters; it takes 19 rounds.

one audit recomputes                      5 % of a contribution
audits in the long run                    5 % of the contributors' compute
  if all segments were drawn              100 %
over 40 rounds, the first 3 on probation  12.12 %
each of 3 auditors                        0.0333 times a contributor's compute
false accusations in 1,000 rounds         0, equal bits being equal

Everybody looked at in every round (rate 1), one segment of one local step:
local steps  finds one false step  compute  with boundary  and 0% second looks
          5                  20 %     20 %           20 %                 20 %
         10                  10 %     10 %           10 %                 10 %
         20                   5 %      5 %            5 %                  5 %
         30               3.333 %  3.333 %        3.333 %              3.333 %
         50                   2 %      2 %            2 %                  2 %
5 % of the compute takes 20 or more segments of one step, so 20 or more local steps (trace_every 1); \
with boundary and second looks 20.

Cheapest policy that finds 95 % within 20 rounds of 1 false segment in each: 13.91 % of the contributors' \
compute; vesting that deters: 7 rounds.
  [audit]
  rate_ppm = 927_400
  segments = 3
Seen in full: barnraise plan --rate 0.9274 --segments 3 --second-look 0.0 --steps 20 20 --trace-every 1 \
--vest-rounds 19 --boundary-cost 0.0

note Assumed: what follows the last step costs 0 of a local step, in every audit (--boundary-cost). 0.12 \
is one measurement, of the demo model on one busy core; traffic, and the contributor's own hashing of \
leaves, are not counted.
note One false segment is enough to bring any change into the weights: plan for that line.
note Audits ask for equal bits of one numerics class, in which honest work never fails, by definition. Clean \
audits alone prove no more than a bound, 3/N: after 3,000 of them --false-alarm-rate 0.001.
note A newcomer has 3 rounds of credit to lose when probation ends, too few to deter its first cheat; the \
stake grows with every round.
Next: barnraise train --train.steps 20 20 --train.trace-every 1 --audit.rate-ppm 1000000 --audit.segments 1 \
--audit.second-look-ppm 0 --credit.vest-rounds 19 --dry-run"""


def test_a_plan_in_words() -> None:
    assert said(TWENTY) == GOLDEN


def test_two_auditors_cannot_settle_a_dispute() -> None:
    note = "Of two auditors that contradict one another neither prevails"
    assert [note in said(PlanOptions(auditors=count)) for count in (1, 2, 3)] == [False, True, False]


def test_a_full_plan_has_no_second_block() -> None:
    text = said(PlanOptions(segments=0, steps=(8, 8), trace_every=4))
    assert "an audit draws all segments" in text
    assert "if all segments" not in text
    assert said(PlanOptions(segments=2, steps=(8, 8), trace_every=4)).count("all segments") == text.count(
        "all segments"
    )


def test_the_lines_for_the_configuration_are_what_was_found() -> None:
    options = PlanOptions(config=DEMO, cheat_segments=4, segments=1)
    best = plan(options).cheapest
    assert best is not None
    text = said(options)
    assert f"  [audit]\n  rate_ppm = {best.rate_ppm:_}\n  segments = {best.segments}\n" in text
    assert f"barnraise plan --rate {best.rate_ppm / MILLION:g} --segments {best.segments} --config" in text
    again = plan(
        PlanOptions(config=DEMO, cheat_segments=4, rate=best.rate_ppm / MILLION, segments=best.segments)
    )
    assert again.policy == best
    everything_false = again.policy.outlooks[0]
    assert everything_false.detection >= Target(0.95, 20, 4).confidence


def test_limits_between_classes_are_said_with_the_weight_that_may_rest_on_them(tmp_path: Path) -> None:
    text = DEMO.read_text().replace("trace_every = 4", "trace_every = 1")
    limits = "loss_ppm = 6\nnorm_ppb = 21405\npeak_ppm = 88\nstep_milli = 1000\n"
    file = tmp_path / "c.toml"
    file.write_text(text + f'\n[[audit.tolerance]]\nclasses = ["one", "other"]\n{limits}')
    assert "This configuration has limits between numerics classes." in said(PlanOptions(config=file))
    share = load_config(file).audit.tolerance_cap_ppm / 10_000
    assert f"all such work together has at most {share:g} % of the weight" in said(PlanOptions(config=file))
    assert "limits between numerics classes" not in said(PlanOptions(config=DEMO))


def test_what_is_said_next_is_understood(tmp_path: Path) -> None:
    text = said(
        PlanOptions(config=DEMO, rate=0.2, segments=1, steps=(20, 16), trace_every=2, probation_rounds=4)
    )
    words = text.splitlines()[-1].split()
    assert words[:5] == ["Next:", "barnraise", "train", "--config", str(DEMO)]
    assert words[-1] == "--dry-run"
    config = override(load_config(DEMO), words[5:-1])
    assert (config.audit.rate_ppm, config.audit.segments) == (200_000, 1)
    assert (config.train.steps, config.train.trace_every) == ((20, 16), 2)
    assert config.audit.probation_rounds == 4
    file = tmp_path / "c.toml"
    file.write_text(
        DEMO.read_text()
        .replace("rate_ppm = 1_000_000", "rate_ppm = 200_000")
        .replace("segments = 0", "segments = 1")
        .replace("steps = [14, 12, 8, 6, 8]", "steps = [20, 16]")
        .replace("trace_every = 4", "trace_every = 2")
        + f"\n[credit]\nvest_rounds = {config.credit.vest_rounds}\n"
    )
    assert plan(PlanOptions(config=file)).policy.deters
    assert plan(PlanOptions(config=file, vest_rounds=config.credit.vest_rounds - 1)).policy.deters is False


def test_the_example_of_one_audit_in_twenty(capsys: Capture) -> None:
    arguments = ["plan", "--rate", "0.05", "--within-rounds", "59", "--vest-rounds", "19", "--json"]
    assert cli.run(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    first = answer["policy"]["outlooks"][0]
    assert first["detection"] == pytest.approx(1 - 0.95**59)
    assert (first["rounds_for_95"], first["rounds_for_99"]) == (59, 90)
    assert answer["policy"]["vest_rounds_needed"] == 19
    assert answer["policy"]["deters"] is True
    assert answer["deters_after_probation"] is False
    assert [text.split()[0] for text in answer["warnings"]] == ["A"]


def test_numbers_come_from_the_configuration_where_none_are_given(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    text = DEMO.read_text().replace("rate_ppm = 1_000_000", "rate_ppm = 250_000")
    config.write_text(text.replace("segments = 0", "segments = 2"))
    answer = plan(PlanOptions(config=config))
    assert (answer.policy.rate_ppm, answer.policy.segments) == (250_000, 2)
    assert (answer.segment_counts, answer.auditors, answer.rounds) == ((4, 3, 2, 2, 2), 3, 40)
    assert [outlook.power_exact for outlook in answer.policy.outlooks] == ["1", "1/2", "1"]
    assert plan(PlanOptions(config=config, rate=0.02, segments=0)).policy.vest_rounds_needed == 49


def test_false_accusations_have_two_bounds() -> None:
    text = said(PlanOptions(rate=0.1, steps=(8,) * 8, false_alarm_rate=0.001, auditors=2))
    assert "0.0008 if two audits err apart, 0.8 if from one cause" in text
    alone = plan(PlanOptions(rate=0.1, steps=(8,) * 8, false_alarm_rate=0.001, auditors=1))
    assert alone.false_accusations_if_same_cause == 0
    assert any("1 auditor cannot confirm" in warning for warning in alone.warnings)
    assert "not known" in said(PlanOptions(tolerance=0.1))


def test_a_third_operator_makes_disputes_end_for_better_or_worse() -> None:
    def least(auditors: int) -> float:
        options = PlanOptions(rate=1.0, steps=(8,), false_alarm_rate=0.01, second_look=0.1, auditors=auditors)
        return plan(options).false_accusations_if_independent

    assert least(2) == pytest.approx(0.1)
    assert least(4) < least(2) < least(3)


def test_late_audits_take_longer_vesting() -> None:
    at_once, late = (plan(PlanOptions(rate=0.05, vest_rounds=19, lag=lag)) for lag in (0, 2))
    assert (at_once.policy.vest_rounds_needed, late.policy.vest_rounds_needed) == (19, 22)
    assert (at_once.policy.deters, late.policy.deters) == (True, False)
    assert plan(PlanOptions(rate=0.05, vest_rounds=22, lag=2)).policy.deters
    text = said(PlanOptions(rate=0.05, vest_rounds=19, lag=2))
    assert "Credit vests after 19 rounds, audits may end 2 rounds late." in text
    assert "--audit.lag 2 --credit.vest-rounds 22" in text
    assert any("has to be above audit.lag" in w for w in plan(PlanOptions(lag=30, vest_rounds=30)).warnings)


def test_nothing_deters_without_audits() -> None:
    text = said(PlanOptions(rate=0.0))
    assert "nothing deters it" in text
    assert "never" in text
    assert text.endswith("Next: barnraise plan with a rate above 0 and a tolerance below 1")


def test_a_target_out_of_reach_is_said() -> None:
    options = PlanOptions(tolerance=0.5, within_rounds=1)
    assert plan(options).cheapest is None
    assert "No policy finds 95 % within 1 round of" in said(options)


def test_no_auditors_share_nothing() -> None:
    answer = plan(PlanOptions(auditors=0))
    assert answer.policy.auditor_load is None
    assert "0 auditors cannot confirm" in answer.warnings[0]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--rate", "2"],
        ["--second-look", "-1"],
        ["--segments", "-1"],
        ["--steps", "0"],
        ["--steps", str(MOST_SEGMENTS + 1), "--trace-every", "1"],
        ["--trace-every", "0"],
        ["--auditors", "-1"],
        ["--gain", "0"],
        ["--cheat-segments", "0"],
        ["--within-rounds", "0"],
        ["--target-detection", "1"],
        ["--tolerance", "nan"],
        ["--false-alarm-rate", "1.5"],
        ["--boundary-cost", "inf"],
        ["--config", "nowhere"],
    ],
)
def test_numbers_out_of_range_are_wrong_use(capsys: Capture, wrong: list[str]) -> None:
    assert cli.run(["plan", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
