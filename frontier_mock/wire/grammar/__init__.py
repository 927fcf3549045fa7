"""Languages that an output is held to: regexes, EBNF, Lark and tags, and sentences of them. Pure.

Theory of operation. Every notation is read into one flat `tree.Grammar`, whose nodes come after
their parts, so that nothing here recurses on what a client sent. `measure` finds the shortest and
about the longest sentence of each node; `author` writes a sentence of about a wanted length, which
is deterministic for a seed. Readers refuse what the engines' own compilers refuse, in their words.
"""
