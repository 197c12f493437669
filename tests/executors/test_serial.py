import pytest

from fusetune.errors import RecipeError
from fusetune.executors.serial import SerialExecutor, create


def test_runs_in_the_order_of_submission_and_only_when_asked():
    ran = []
    executor = create()
    for number in (4, 2, 9):
        executor.submit(number, lambda number=number: ran.append(number) or number * 10)
    assert executor.capacity == 1
    assert ran == []
    assert [(o.number, o.value) for o in (executor.next_done() for _ in range(3))] == [
        (4, 40),
        (2, 20),
        (9, 90),
    ]


def test_an_exception_is_an_outcome():
    executor = SerialExecutor()
    executor.submit(0, lambda: 1 / 0)
    outcome = executor.next_done()
    assert outcome.value is None
    assert isinstance(outcome.error, ZeroDivisionError)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_is_not_an_outcome(signal):
    def stop():
        raise signal

    executor = SerialExecutor()
    executor.submit(0, stop)
    with pytest.raises(signal):
        executor.next_done()


def test_nothing_submitted_is_a_mistake_of_the_caller():
    executor = SerialExecutor()
    executor.submit(0, int)
    executor.close()
    with pytest.raises(ValueError, match="No evaluation was submitted"):
        executor.next_done()


def test_an_unknown_option_is_named():
    with pytest.raises(RecipeError, match="takes no options; got workers"):
        create(workers=3)
