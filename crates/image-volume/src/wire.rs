//! Messages of containerd's gRPC services, as much of them as is used here.
//!
//! Names, numbers and types are those of the `.proto` files in containerd's `api/services` and `api/types`,
//! the same from containerd 1.6 to 2.1 (transfer: from 1.7 on). Fields that are not listed are skipped.

use std::collections::HashMap;

use prost::Message;

/// `containerd.types.Descriptor`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Descriptor {
    #[prost(string, tag = "1")]
    pub(crate) media_type: String,
    #[prost(string, tag = "2")]
    pub(crate) digest: String,
    #[prost(int64, tag = "3")]
    pub(crate) size: i64,
}

/// `containerd.types.Mount`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) fstype: String,
    #[prost(string, tag = "2")]
    pub(crate) source: String,
    #[prost(string, tag = "3")]
    pub(crate) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) options: Vec<String>,
}

/// `containerd.types.Platform`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Platform {
    #[prost(string, tag = "1")]
    pub(crate) os: String,
    #[prost(string, tag = "2")]
    pub(crate) architecture: String,
}

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// `google.protobuf.Empty`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Empty {}

/// `containerd.services.images.v1.GetImageRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetImageRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// `containerd.services.images.v1.GetImageResponse`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
}

/// `containerd.services.images.v1.Image`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(message, optional, tag = "3")]
    pub(crate) target: Option<Descriptor>,
}

/// `containerd.services.content.v1.ReadContentRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContentRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
}

/// `containerd.services.content.v1.ReadContentResponse`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContentResponse {
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) data: Vec<u8>,
}

/// `containerd.services.snapshots.v1.StatSnapshotRequest`, and `RemoveSnapshotRequest`, which is the same.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotRequest {
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
}

/// `containerd.services.snapshots.v1.ViewSnapshotRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ViewSnapshotRequest {
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
    #[prost(string, tag = "3")]
    pub(crate) parent: String,
}

/// `containerd.services.snapshots.v1.ViewSnapshotResponse`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ViewSnapshotResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) mounts: Vec<Mount>,
}

/// `containerd.services.leases.v1.CreateRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateLeaseRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(map = "string, string", tag = "3")]
    pub(crate) labels: HashMap<String, String>,
}

/// `containerd.services.leases.v1.DeleteRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeleteLeaseRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// Whether garbage is collected before the answer comes.
    #[prost(bool, tag = "2")]
    pub(crate) sync: bool,
}

/// `containerd.services.transfer.v1.TransferRequest`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TransferRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) source: Option<Any>,
    #[prost(message, optional, tag = "2")]
    pub(crate) destination: Option<Any>,
}

/// `containerd.types.transfer.OCIRegistry`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OciRegistry {
    #[prost(string, tag = "1")]
    pub(crate) reference: String,
}

impl OciRegistry {
    pub(crate) const TYPE: &str = "containerd.types.transfer.OCIRegistry";
}

/// `containerd.types.transfer.ImageStore`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageStore {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) platforms: Vec<Platform>,
    #[prost(message, repeated, tag = "10")]
    pub(crate) unpacks: Vec<UnpackConfiguration>,
}

impl ImageStore {
    pub(crate) const TYPE: &str = "containerd.types.transfer.ImageStore";
}

/// `containerd.types.transfer.UnpackConfiguration`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UnpackConfiguration {
    #[prost(message, optional, tag = "1")]
    pub(crate) platform: Option<Platform>,
    #[prost(string, tag = "2")]
    pub(crate) snapshotter: String,
}
