"""A command of s2vfast in this process."""

from s2vfast import cli


def call(capsys, *words):
    """What a command that succeeds prints."""
    code = cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out
