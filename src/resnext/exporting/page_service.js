"use strict";
// Keeps the files of a page, so that it opens without a network after the first visit.

const SCOPE = self.registration.scope;
const NAME = `resnext ${SCOPE} {{ version }}`;
const FILES = {{ files }};

self.addEventListener("install", (event) => event.waitUntil((async () => {
  const cache = await caches.open(NAME);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "reload" })));
})()));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) {
    if (name.startsWith(`resnext ${SCOPE} `) && name !== NAME) await caches.delete(name);
  }
  await self.clients.claim();
})()));

self.addEventListener("fetch", (event) => {
  const address = event.request.url.split(/[?#]/)[0].replace(/\/index\.html$/, "/");
  if (FILES.some((file) => new URL(file, SCOPE).href === address)) event.respondWith(kept(address, event.request));
});

async function kept(address, request) {
  return await (await caches.open(NAME)).match(address) ?? fetch(request);
}
