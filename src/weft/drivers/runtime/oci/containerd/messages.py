"""containerd's messages, as far as weft uses them: the fields and numbers of its public API, version 1 (containerd 1.x and 2.x).

The message classes are built from this table when the module is loaded. A ``*Entry`` is how a map travels.
"""

from __future__ import annotations

from weft.contracts.messages import make_messages

_TABLE: dict[str, str] = {
    "Empty": "",
    "Any": "type_url string 1, value bytes 2",
    "LabelEntry": "key string 1, value string 2",
    "ExtensionEntry": "key string 1, value Any 2",
    "VersionResponse": "version string 1, revision string 2",
    "Mount": "type string 1, source string 2, target string 3, options *string 4",
    "RuntimeChoice": "name string 1, options Any 2",
    "Container": (
        "id string 1, labels *LabelEntry 2, runtime RuntimeChoice 4, spec Any 5, extensions *ExtensionEntry 10"
    ),
    "CreateContainerRequest": "container Container 1",
    "ContainerResponse": "container Container 1",
    "ListContainersRequest": "filters *string 1",
    "ListContainersResponse": "containers *Container 1",
    "ContainerName": "id string 1",
    "CreateTaskRequest": (
        "container_id string 1, rootfs *Mount 3, stdin string 4, stdout string 5, stderr string 6, terminal bool 7"
    ),
    "CreateTaskResponse": "container_id string 1, pid uint32 2",
    "ProcessName": "container_id string 1, exec_id string 2",  # of a task's own process without exec_id
    "StartResponse": "pid uint32 1",
    "Process": "container_id string 1, id string 2, pid uint32 3, status int32 4, exit_status uint32 9",
    "GetResponse": "process Process 1",
    "KillRequest": "container_id string 1, exec_id string 2, signal uint32 3, all bool 4",
    "ExecProcessRequest": (
        "container_id string 1, stdin string 2, stdout string 3, stderr string 4, terminal bool 5, spec Any 6, exec_id string 7"
    ),
    "ResizePtyRequest": "container_id string 1, exec_id string 2, width uint32 3, height uint32 4",
    "CloseIoRequest": "container_id string 1, exec_id string 2, stdin bool 3",
    "UpdateTaskRequest": "container_id string 1, resources Any 2",
    "WaitResponse": "exit_status uint32 1",
    "RuncOptions": "shim_cgroup string 3, binary_name string 6",
    "MetricsRequest": "filters *string 1",
    "MetricsResponse": "metrics *Metric 1",
    "Metric": "id string 2, data Any 3",
    "MetricsV1": "cpu CpuV1 3, memory MemoryV1 4, blkio DisksV1 5",  # of control groups of version 1, containerd/cgroups
    "CpuV1": "usage CpuUsage 1",
    "CpuUsage": "total uint64 1",
    "MemoryV1": "usage MemoryEntry 33",
    "MemoryEntry": "usage uint64 2",
    "DisksV1": "io_service_bytes_recursive *DiskEntryV1 1",
    "DiskEntryV1": "op string 1, value uint64 5",
    "MetricsV2": "cpu CpuV2 2, memory MemoryV2 4, io DisksV2 6",
    "CpuV2": "usage_usec uint64 1",
    "MemoryV2": "usage uint64 32",
    "DisksV2": "usage *DiskEntryV2 1",
    "DiskEntryV2": "rbytes uint64 3, wbytes uint64 4",
    "SubscribeRequest": "filters *string 1",
    "Envelope": "namespace string 2, topic string 3, event Any 4",
    "TaskOom": "container_id string 1",
}

messages = make_messages("weft.containerd", _TABLE)

CREATED, RUNNING, STOPPED, PAUSED, PAUSING = 1, 2, 3, 4, 5  # Process.status

_SPECIFICATION = "types.containerd.io/opencontainers/runtime-spec/1/"
SPEC, PROCESS, RESOURCES = _SPECIFICATION + "Spec", _SPECIFICATION + "Process", _SPECIFICATION + "LinuxResources"
RUNC_OPTIONS = "containerd.runc.v1.Options"
METRICS_V1, METRICS_V2 = "io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"
RECORD = "weft/ContainerRecord"
