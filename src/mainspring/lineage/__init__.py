"""What came from what, what happened, and who decided: edges, events, one audit chain."""

from mainspring.lineage.foundation import Foundation
from mainspring.lineage.ledger import Decision, Ledger
from mainspring.lineage.operations import Lineage

__all__ = ["Decision", "Foundation", "Ledger", "Lineage"]
