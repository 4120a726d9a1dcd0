"""etcd's messages, as far as weft uses them: the fields and numbers of etcd v3's public wire format, nothing more.

The message classes are built from this table when the module is loaded.
"""

from __future__ import annotations

from weft.contracts.messages import make_messages

# message → its fields, "name type number" each; "*" repeats, "|" is one of the message's single choice.
_TABLE: dict[str, str] = {
    "Header": "cluster_id int64 1, member_id uint64 2, revision int64 3, raft_term uint64 4",
    "KeyValue": "key bytes 1, create_revision int64 2, mod_revision int64 3, version int64 4, value bytes 5",
    "RangeRequest": "key bytes 1, range_end bytes 2, limit int64 3, revision int64 4, keys_only bool 8, count_only bool 9",
    "RangeResponse": "header Header 1, kvs *KeyValue 2, more bool 3, count int64 4",
    "PutRequest": "key bytes 1, value bytes 2",
    "PutResponse": "header Header 1",
    "DeleteRangeRequest": "key bytes 1, range_end bytes 2",
    "DeleteRangeResponse": "header Header 1, deleted int64 2",
    "RequestOp": "range |RangeRequest 1, put |PutRequest 2, delete_range |DeleteRangeRequest 3, txn |TxnRequest 4",
    "ResponseOp": "range |RangeResponse 1, put |PutResponse 2, delete_range |DeleteRangeResponse 3, txn |TxnResponse 4",
    "Compare": (
        "result int32 1, target int32 2, key bytes 3, version |int64 4, create_revision |int64 5, mod_revision |int64 6"
    ),
    "TxnRequest": "compare *Compare 1, success *RequestOp 2, failure *RequestOp 3",
    "TxnResponse": "header Header 1, succeeded bool 2, responses *ResponseOp 3",
    "CompactionRequest": "revision int64 1",
    "CompactionResponse": "header Header 1",
    "WatchCreateRequest": (
        "key bytes 1, range_end bytes 2, start_revision int64 3, progress_notify bool 4, prev_kv bool 6, fragment bool 8"
    ),
    "WatchRequest": "create_request |WatchCreateRequest 1",
    "Event": "type int32 1, kv KeyValue 2, prev_kv KeyValue 3",
    "WatchResponse": (
        "header Header 1, watch_id int64 2, created bool 3, canceled bool 4, compact_revision int64 5,"
        " cancel_reason string 6, fragment bool 7, events *Event 11"
    ),
    "Member": "id uint64 1, name string 2, peer_urls *string 3, client_urls *string 4, is_learner bool 5",
    "MemberListRequest": "",
    "MemberAddRequest": "peer_urls *string 1, is_learner bool 2",
    "MemberAddResponse": "header Header 1, member Member 2, members *Member 3",
    "MemberRemoveRequest": "id uint64 1",
    "MemberPromoteRequest": "id uint64 1",
    "MembersResponse": "header Header 1, members *Member 2",
    "StatusRequest": "",
    "StatusResponse": (
        "header Header 1, size int64 3, leader uint64 4, errors *string 8, used int64 9, is_learner bool 10"
    ),
    "AlarmRequest": "action int32 1, member_id uint64 2, alarm int32 3",
    "AlarmMember": "member_id uint64 1, alarm int32 2",
    "AlarmResponse": "header Header 1, alarms *AlarmMember 2",
    "DefragmentRequest": "",
    "DefragmentResponse": "header Header 1",
    "HandOverRequest": "target_id uint64 1",
    "HandOverResponse": "header Header 1",
}


_classes = make_messages("weft.etcd", _TABLE)

Compare = _classes["Compare"]
RequestOp = _classes["RequestOp"]
RangeRequest, RangeResponse = _classes["RangeRequest"], _classes["RangeResponse"]
PutRequest, DeleteRangeRequest = _classes["PutRequest"], _classes["DeleteRangeRequest"]
DeleteRangeResponse = _classes["DeleteRangeResponse"]
TxnRequest, TxnResponse = _classes["TxnRequest"], _classes["TxnResponse"]
CompactionRequest, CompactionResponse = _classes["CompactionRequest"], _classes["CompactionResponse"]
WatchRequest, WatchCreateRequest = _classes["WatchRequest"], _classes["WatchCreateRequest"]
WatchResponse = _classes["WatchResponse"]
MemberListRequest, MemberAddRequest = _classes["MemberListRequest"], _classes["MemberAddRequest"]
MemberAddResponse, MembersResponse = _classes["MemberAddResponse"], _classes["MembersResponse"]
MemberRemoveRequest, MemberPromoteRequest = _classes["MemberRemoveRequest"], _classes["MemberPromoteRequest"]
StatusRequest, StatusResponse = _classes["StatusRequest"], _classes["StatusResponse"]
AlarmRequest, AlarmResponse = _classes["AlarmRequest"], _classes["AlarmResponse"]
DefragmentRequest, DefragmentResponse = _classes["DefragmentRequest"], _classes["DefragmentResponse"]
HandOverRequest, HandOverResponse = _classes["HandOverRequest"], _classes["HandOverResponse"]

EQUAL, NOT_EQUAL = 0, 3  # Compare.result
OF_VERSION, OF_CREATE, OF_MOD = 0, 1, 2  # Compare.target
DELETED = 1  # Event.type
HAND_OVER = "MoveLeader"  # the method's name
LIST_ALARMS, END_ALARM = 0, 2  # AlarmRequest.action
