"""What a rejected reply proves about its sender.

===========================  ================================================  ========
reason                       how a reply gets it                               evidence
===========================  ================================================  ========
`stype`, `header`, `length`  bytes that NumPy does not write                   proof
`malformed`, `undecodable`   a message that Flower does not write              proof
`keys`, `shape`, `dtype`     arrays of another model or version of the app     fault
`not-finite`, `too-large`    NaN, infinity or a number near overflow           fault
`records`                    no arrays or no metrics, or several sets of them  fault
`weight`                     no examples, or no number of examples             none
===========================  ================================================  ========

Proof: code that is the app's own cannot send it, whatever its data are.
Fault: something broke on the node, or its app is another version. Honest clients break
as well, one at a time; a client that breaks again and again counts as one of the f.
None: an honest client in working order may send it, for example without any data.
Other reasons, such as those of a detector of one's own, are no evidence.
"""

__all__ = ["FAULTS", "PROOFS"]

PROOFS = frozenset(["stype", "header", "length", "malformed", "undecodable"])
"""Reasons that only a malicious node, or a node with other code, can cause."""

FAULTS = frozenset(["keys", "shape", "dtype", "not-finite", "too-large", "records"])
"""Reasons that an honest node causes only if it is broken or out of date."""
