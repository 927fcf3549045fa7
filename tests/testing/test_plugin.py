"""The fixture, as a user's test suite meets it."""

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
    import pytest

    @pytest.fixture
    async def cluster(mock_cluster):
        return await mock_cluster(workers=2, flags=["--max-num-seqs", "8"])
"""


def outcome(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess(
        "-q", "-p", "frontier_mock.pytest_plugin", "-p", "no:cacheprovider",
        "-o", "asyncio_mode=auto",
        "-o", "asyncio_default_fixture_loop_scope=function", *options,
    )  # fmt: skip


def test_a_suite_becomes_virtual_by_adding_the_fixture(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
        import asyncio

        async def test_agent(cluster):
            client = cluster.openai()
            await asyncio.sleep(3600)
            reply = await client.chat.completions.create(
                model=cluster.model, messages=[{"role": "user", "content": "hi"}], max_tokens=5
            )
            assert reply.usage.completion_tokens == 5
            assert 3600 < cluster.now_s < 3601
            assert len(cluster.urls) == 2

        async def test_without_the_fixture():
            assert type(asyncio.get_running_loop()).__name__ != "VirtualTimeLoop"
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_hang_fails_at_once_and_says_where(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
        import asyncio

        async def test_hangs(cluster):
            await asyncio.Queue().get()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Deadlock: nothing is scheduled*", "*test_hangs() at *"])


def test_misspelt_options_are_named(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
        import pytest

        @pytest.mark.virtual_time(limit=60)
        async def test_mark():
            pass

        async def test_flags(mock_cluster):
            await mock_cluster(flags="--no-sim-eos")
        """,
    )
    result.assert_outcomes(errors=1, failed=1)
    result.stdout.fnmatch_lines(["*virtual_time: limit is no option of it; allowed: limit_s,*"])
    result.stdout.fnmatch_lines(["*ConfigError: flags: '--no-sim-eos' is one string*"])


def test_runaway_time_fails(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
        import asyncio
        import pytest

        @pytest.mark.virtual_time(limit_s=60)
        async def test_polls_for_ever(cluster):
            while True:
                await asyncio.sleep(1)
        """,
        "--strict-markers",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*TimeLimit: virtual time reached the limit of 60 s*"])


def test_the_mark_alone_gives_a_virtual_loop(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
        import asyncio
        import pytest

        @pytest.mark.virtual_time
        async def test_sleeps():
            await asyncio.sleep(86400)
            assert asyncio.get_running_loop().time() == 86400
        """,
        "--strict-markers",
    )
    result.assert_outcomes(passed=1)


def test_a_bad_model_is_one_clear_error(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
        async def test_typo(mock_cluster):
            await mock_cluster(model="meta-llama/Lama")
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: *meta-llama/Lama*"])
