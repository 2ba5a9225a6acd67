//! A registry with one image, as much of one as pulling needs (OCI distribution specification).

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::images;

const INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// First byte of a TLS connection (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Serves until the process ends.
pub struct Registry {
    address: SocketAddr,
}

/// Content and its media type, by digest or tag.
type Content = HashMap<String, (String, Vec<u8>)>;

impl Registry {
    /// Serves the test's image `name` as the tag `1`, in an index with others' platforms.
    pub fn start(name: &str) -> Registry {
        let content = Arc::new(content(name));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let content = Arc::clone(&content);
                // A client that hangs up early is its own problem.
                thread::spawn(move || serve(&content, &stream));
            }
        });
        Registry { address }
    }

    /// The image's full reference.
    pub fn image(&self) -> String {
        format!("{}/volumes:1", self.address)
    }
}

fn serve(content: &Content, mut stream: &TcpStream) -> Option<()> {
    let mut first = [0; 4096];
    if stream.peek(&mut first[..1]).ok()? == 1 && first[0] == TLS_HANDSHAKE {
        // containerd tries TLS first, even here. It goes on without when it sees plain HTTP.
        let _ = stream.read(&mut first).ok()?;
        return stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
    }
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next()?.ok()?;
    while lines.next()?.is_ok_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let found = content.get(path.rsplit('/').next()?);
    let head = match found {
        None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".to_owned(),
        Some((media_type, body)) => format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: {media_type}\r\nDocker-Content-Digest: {}\r\n",
            body.len(),
            digest(body)
        ),
    };
    write!(stream, "{head}Connection: close\r\n\r\n").ok()?;
    match found {
        Some((_, body)) if method == "GET" => stream.write_all(body).ok(),
        _ => Some(()),
    }
}

/// What is in the image's archive, and an index for it.
fn content(name: &str) -> Content {
    let archives = images::archives();
    let (_, archive) = archives.iter().find(|(other, _)| *other == name).unwrap();
    let mut content = Content::new();
    let mut manifest = Value::Null;
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if path.ends_with("index.json") {
            let index: Value = serde_json::from_slice(&bytes).unwrap();
            manifest = index["manifests"][0].clone();
        } else {
            content.insert(digest(&bytes), (String::new(), bytes));
        }
    }
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    content
        .get_mut(manifest["digest"].as_str().unwrap())
        .unwrap()
        .0 = media_type;
    let architecture = fc_testbed::image::oci_architecture();
    let with = |os: &str, architecture: &str| {
        let mut entry = manifest.clone();
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entry
    };
    let mut other = with("linux", "s390x");
    other["digest"] = json!(digest(b"nothing"));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, with("linux", architecture)]});
    let index = (INDEX.to_owned(), index.to_string().into_bytes());
    content.insert(digest(&index.1), index.clone());
    content.insert("1".to_owned(), index);
    content
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&digest))
}
