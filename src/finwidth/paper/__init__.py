"""The source paper as code: its definitions, one check for each numbered statement, and what they find different.

Examples
--------
>>> import finwidth
>>> finwidth.paper.check("lemma-9").holds
True
"""

from finwidth.paper.statements import STATEMENTS, Finding, Statement, check, check_all, findings

__all__ = ["STATEMENTS", "Finding", "Statement", "check", "check_all", "findings"]
