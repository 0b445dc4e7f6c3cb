# SPDX-License-Identifier: Apache-2.0
"""Keys of the GKE API that may stand around ours, and that kmodgate does not use.

A file may be a node system config, a ``NodeConfig``, or the whole ``NodePool`` as
``gcloud container node-pools describe`` prints it. These keys are known by name, so
that a misspelt one is still an error. Names: GKE API v1 and v1beta1, resources
``NodePool``, ``NodeConfig`` and ``LinuxNodeConfig``; ``linuxConfig`` of the node
system config file.
"""

from __future__ import annotations

NODE_POOL = frozenset(
    (
        "autopilotConfig",
        "autoscaling",
        "bestEffortProvisioning",
        "conditions",
        "etag",
        "initialNodeCount",
        "instanceGroupUrls",
        "kubeletCertInfo",
        "locations",
        "maintenancePolicy",
        "management",
        "maxPodsConstraint",
        "name",
        "networkConfig",
        "nodeDrainConfig",
        "placementPolicy",
        "podIpv4CidrSize",
        "queuedProvisioning",
        "selfLink",
        "status",
        "statusMessage",
        "updateInfo",
        "upgradeSettings",
        "version",
    )
)

NODE_CONFIG = frozenset(
    (
        "accelerators",
        "advancedMachineFeatures",
        "bootDisk",
        "bootDiskKmsKey",
        "confidentialNodes",
        "consolidationDelay",
        "containerdConfig",
        "diskSizeGb",
        "diskType",
        "effectiveCgroupMode",
        "enableConfidentialStorage",
        "ephemeralStorageConfig",
        "ephemeralStorageLocalSsdConfig",
        "fastSocket",
        "flexStart",
        "gcfsConfig",
        "gpuDirectConfig",
        "gvnic",
        "hostMaintenancePolicy",
        "imageType",
        "kubeletConfig",
        "labels",
        "localNvmeSsdBlockConfig",
        "localSsdCount",
        "localSsdEncryptionMode",
        "loggingConfig",
        "machineType",
        "maxRunDuration",
        "metadata",
        "minCpuPlatform",
        "nodeGroup",
        "nodeImageConfig",
        "oauthScopes",
        "preemptible",
        "reservationAffinity",
        "resourceLabels",
        "resourceManagerTags",
        "sandboxConfig",
        "secondaryBootDiskUpdateStrategy",
        "secondaryBootDisks",
        "serviceAccount",
        "shieldedInstanceConfig",
        "soleTenantConfig",
        "spot",
        "storagePools",
        "tags",
        "taintConfig",
        "taints",
        "windowsNodeConfig",
        "workloadMetadataConfig",
    )
)

LINUX_NODE_CONFIG = frozenset(
    (
        "accurateTimeConfig",
        "additionalEtcHosts",
        "additionalEtcResolvConf",
        "additionalEtcSystemdResolvedConf",
        "customNodeInit",
        "diskIoScheduler",
        "etag",
        "hugepageConfig",
        "hugepages",
        "hugepagesConfig",
        "kernelOverrides",
        "nodeVfioConfig",
        "swapConfig",
        "sysctl",
        "sysctls",
        "timeZone",
        "transparentHugepageDefrag",
        "transparentHugepageEnabled",
    )
)
