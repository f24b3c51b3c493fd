import io
import logging

from mesh.log_levels import LogSwitch


def test_each_severity_is_switched_by_itself() -> None:
    logger = logging.getLogger("of this test")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    written = io.StringIO()
    logger.addHandler(logging.StreamHandler(written))
    switch = LogSwitch(logger)

    def lines() -> list[str]:
        written.truncate(0)
        written.seek(0)
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, logging.getLevelName(level))
        return written.getvalue().split()

    assert lines() == ["INFO", "WARNING", "ERROR"]
    switch.change(verbose=1, warning=False)
    assert lines() == ["DEBUG", "INFO", "ERROR"]
    switch.change(verbose=0, info=False, warning=True)
    assert lines() == ["WARNING", "ERROR"]
    switch.change(info=True)
    assert lines() == ["INFO", "WARNING", "ERROR"]
