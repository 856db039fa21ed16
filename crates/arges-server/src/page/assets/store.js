// Conversations, in this browser's database. Where there is none, as in some private windows, they last as long as the page.

const NAME = "arges";
const TABLE = "conversations";
const memory = new Map();
let opened;

function database() {
  opened ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opened;
}

async function run(mode, act) {
  const db = await database();
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(TABLE, mode);
    const request = act(transaction.objectStore(TABLE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// Every conversation, the newest first.
export async function all() {
  const list = (await database()) ? await run("readonly", (table) => table.getAll()) : [...memory.values()];
  return list.sort((a, b) => b.updated - a.updated);
}

export async function put(conversation) {
  const copy = structuredClone(conversation);
  if (await database()) await run("readwrite", (table) => table.put(copy));
  else memory.set(copy.id, copy);
}

export async function remove(id) {
  if (await database()) await run("readwrite", (table) => table.delete(id));
  else memory.delete(id);
}
