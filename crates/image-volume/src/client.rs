//! The calls to containerd that are needed here, by what they are for.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::{ImageVolumeError, manifest, wire};

/// How long containerd may take to accept a connection, and to answer a call other than a pull.
const BOUND: Duration = Duration::from_secs(60);
/// Largest manifest, index or configuration that is read, in bytes.
const MAX_DOCUMENT: i64 = 4 << 20;

/// A connection to containerd, for one of its namespaces. Cheap to clone; connects anew by itself when containerd
/// was restarted.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    namespace: AsciiMetadataValue,
}

impl Containerd {
    /// Connects to the gRPC socket (usually `/run/containerd/containerd.sock`) for the namespace, such as `default`.
    /// Must be called in a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// When nothing accepts there, or the namespace has characters other than visible ASCII.
    pub async fn connect(socket: &Path, namespace: &str) -> Result<Containerd, ImageVolumeError> {
        let header = AsciiMetadataValue::try_from(namespace);
        let Some(namespace) = header.ok().filter(|_| !namespace.is_empty()) else {
            return Err(ImageVolumeError::Namespace(namespace.to_owned()));
        };
        let failed = |error| ImageVolumeError::Connect(socket.to_owned(), error);
        let endpoint =
            Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(failed)?;
        let channel = endpoint.connect_timeout(BOUND).connect().await;
        Ok(Containerd {
            channel: channel.map_err(failed)?,
            namespace,
        })
    }

    /// What the image called `name` consists of; `None` if there is no such image.
    pub(crate) async fn image(
        &self,
        name: &str,
    ) -> Result<Option<wire::Descriptor>, ImageVolumeError> {
        let request = wire::GetImageRequest {
            name: name.to_owned(),
        };
        let path = "/containerd.services.images.v1.Images/Get";
        let response: Result<wire::GetImageResponse, _> =
            self.call(path, self.request(request)).await;
        match response {
            Ok(response) => Ok(response.image.and_then(|image| image.target)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(call_failed("look up the image", status)),
        }
    }

    /// Reads a manifest, index or configuration.
    pub(crate) async fn document(
        &self,
        digest: &str,
        size: i64,
    ) -> Result<Vec<u8>, ImageVolumeError> {
        let Some(size) = (0..=MAX_DOCUMENT)
            .contains(&size)
            .then(|| usize::try_from(size).ok())
            .flatten()
        else {
            return Err(ImageVolumeError::TooLarge {
                digest: digest.to_owned(),
                size,
                limit: MAX_DOCUMENT,
            });
        };
        let failed = |status: Status| match status.code() {
            Code::NotFound => ImageVolumeError::NoContent(digest.to_owned()),
            _ => call_failed("read the image's content", status),
        };
        let request = wire::ReadContentRequest {
            digest: digest.to_owned(),
        };
        let mut grpc = self.ready().await.map_err(failed)?;
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
        let codec = ProstCodec::<_, wire::ReadContentResponse>::default();
        let mut stream = grpc
            .server_streaming(self.bounded(request), path, codec)
            .await
            .map_err(failed)?
            .into_inner();
        let mut content = Vec::with_capacity(size);
        while let Some(part) = stream.message().await.map_err(failed)? {
            content.extend_from_slice(&part.data);
            if content.len() > size {
                break;
            }
        }
        if content.len() != size {
            return Err(ImageVolumeError::WrongSize(digest.to_owned()));
        }
        Ok(content)
    }

    /// Whether the snapshotter has a snapshot called `key`.
    pub(crate) async fn has_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<bool, ImageVolumeError> {
        let request = snapshot(snapshotter, key);
        let path = "/containerd.services.snapshots.v1.Snapshots/Stat";
        let response: Result<wire::Empty, _> = self.call(path, self.bounded(request)).await;
        match response {
            Ok(_) => Ok(true),
            Err(status) => match status.code() {
                Code::NotFound => Ok(false),
                // The key is a digest: only the snapshotter's name can be invalid.
                Code::InvalidArgument => {
                    Err(ImageVolumeError::NoSnapshotter(snapshotter.to_owned()))
                }
                _ => Err(call_failed("look up the image's snapshot", status)),
            },
        }
    }

    /// Makes a lease that expires at `expires` (RFC 3339).
    pub(crate) async fn create_lease(
        &self,
        id: &str,
        expires: String,
    ) -> Result<(), ImageVolumeError> {
        let request = wire::CreateLeaseRequest {
            id: id.to_owned(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]),
        };
        let path = "/containerd.services.leases.v1.Leases/Create";
        let response: Result<wire::Empty, _> = self.call(path, self.bounded(request)).await;
        response
            .map(drop)
            .map_err(|status| call_failed("make a lease", status))
    }

    /// Deletes a lease, and what only it has kept. One that is not there is fine.
    pub(crate) async fn delete_lease(&self, id: &str) -> Result<(), ImageVolumeError> {
        let request = wire::DeleteLeaseRequest {
            id: id.to_owned(),
            sync: true,
        };
        let path = "/containerd.services.leases.v1.Leases/Delete";
        self.delete(path, "delete the lease", request).await
    }

    /// Makes a read-only snapshot called `key` of the snapshot `parent`, kept by `lease`.
    pub(crate) async fn view(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        lease: &str,
    ) -> Result<Vec<fc_rootfs::Mount>, ImageVolumeError> {
        let failed = |status| call_failed("make a view of the image's snapshot", status);
        let mut request = self.bounded(wire::ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
        });
        let lease = AsciiMetadataValue::try_from(lease)
            .map_err(|error| failed(Status::from_error(Box::new(error))))?;
        request.metadata_mut().insert("containerd-lease", lease);
        let path = "/containerd.services.snapshots.v1.Snapshots/View";
        let response: wire::ViewSnapshotResponse =
            self.call(path, request).await.map_err(failed)?;
        let mounts = response.mounts.into_iter().map(|mount| fc_rootfs::Mount {
            fstype: mount.fstype,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        });
        Ok(mounts.collect())
    }

    /// Removes a snapshot. One that is not there is fine.
    pub(crate) async fn remove_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<(), ImageVolumeError> {
        let request = snapshot(snapshotter, key);
        let path = "/containerd.services.snapshots.v1.Snapshots/Remove";
        self.delete(path, "remove the view", request).await
    }

    /// Has containerd pull the image called `name` for this machine and unpack it; takes as long as it takes.
    pub(crate) async fn pull(&self, name: &str, snapshotter: &str) -> Result<(), Status> {
        let platform = wire::Platform {
            os: manifest::OS.to_owned(),
            architecture: manifest::architecture().0.to_owned(),
        };
        let any = |type_url: &str, value| wire::Any {
            type_url: type_url.to_owned(),
            value,
        };
        let source = wire::OciRegistry {
            reference: name.to_owned(),
        };
        let destination = wire::ImageStore {
            name: name.to_owned(),
            platforms: vec![platform.clone()],
            unpacks: vec![wire::UnpackConfiguration {
                platform: Some(platform),
                snapshotter: snapshotter.to_owned(),
            }],
        };
        let request = wire::TransferRequest {
            source: Some(any(wire::OciRegistry::TYPE, source.encode_to_vec())),
            destination: Some(any(wire::ImageStore::TYPE, destination.encode_to_vec())),
        };
        let path = "/containerd.services.transfer.v1.Transfer/Transfer";
        let response: Result<wire::Empty, _> = self.call(path, self.request(request)).await;
        response.map(drop)
    }

    async fn delete<Q>(
        &self,
        path: &'static str,
        action: &'static str,
        request: Q,
    ) -> Result<(), ImageVolumeError>
    where
        Q: Message + 'static,
    {
        let response: Result<wire::Empty, _> = self.call(path, self.bounded(request)).await;
        match response {
            Err(status) if status.code() != Code::NotFound => Err(call_failed(action, status)),
            _ => Ok(()),
        }
    }

    async fn call<Q, A>(&self, path: &'static str, request: Request<Q>) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::default();
        let response = grpc
            .unary(request, PathAndQuery::from_static(path), codec)
            .await?;
        Ok(response.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::from_error(error.into()))?;
        Ok(grpc)
    }

    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        let namespace = self.namespace.clone();
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        request
    }

    fn bounded<Q>(&self, message: Q) -> Request<Q> {
        let mut request = self.request(message);
        request.set_timeout(BOUND);
        request
    }
}

fn snapshot(snapshotter: &str, key: &str) -> wire::SnapshotRequest {
    wire::SnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    }
}

fn call_failed(action: &'static str, status: Status) -> ImageVolumeError {
    ImageVolumeError::Call {
        action,
        status: Box::new(status),
    }
}
