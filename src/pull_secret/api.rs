//! Requests to the API server, beyond those that `kube`'s typed `Api` makes by itself.

use super::error::{ApiError, can_i};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, PartialObjectMeta, PostParams};
use kube::{Api, Client};

/// How many objects a list returns at a time. The metadata of one can be larger than 256 KiB.
pub(super) const PAGE: u32 = 100;

/// A request as RBAC sees it. Without a namespace or a name it is for all of them; a create has no name.
#[must_use]
pub fn request(
    verb: &str,
    resource: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> ResourceAttributes {
    ResourceAttributes {
        verb: Some(verb.to_owned()),
        resource: Some(resource.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: name.filter(|_| verb != "create").map(str::to_owned),
        ..ResourceAttributes::default()
    }
}

/// The result of a request, with the meaning of its error. The refusal of an admission plugin differs from that of RBAC by its
/// text alone. So the API server is asked whether a right is missing.
pub(super) async fn checked<T>(
    client: &Client,
    result: kube::Result<T>,
    request: ResourceAttributes,
) -> Result<T, ApiError> {
    let Err(error) = result else { return result.map_err(|_| ApiError::InvalidAnswer) };
    let meaning = ApiError::of(&error, &request);
    let is_forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
    if !is_forbidden || !matches!(meaning, ApiError::Refused(_)) {
        return Err(meaning);
    }
    let command = can_i(&request);
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(request), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let reviewed = Api::all(client.clone()).create(&PostParams::default(), &review).await;
    let is_allowed = reviewed.ok().and_then(|review| review.status).is_none_or(|status| status.allowed);
    Err(if is_allowed { meaning } else { ApiError::Forbidden(command) })
}

/// Lists all namespaces.
pub(super) async fn namespaces(client: &Client) -> Result<Vec<PartialObjectMeta<Namespace>>, ApiError> {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut namespaces = Vec::new();
    loop {
        let page = api.list(&params).await;
        let page = checked(client, page, request("list", "namespaces", None, None)).await?;
        namespaces.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(namespaces),
        }
    }
}
