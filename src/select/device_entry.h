// Device entries of selector plugins (include/tinyserve/plugin_device.h), checked on the host.
#ifndef TINYSERVE_SELECT_DEVICE_ENTRY_H_
#define TINYSERVE_SELECT_DEVICE_ENTRY_H_

#include "tinyserve/plugin.h"
#include "tinyserve/plugin_device.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Whether an entry can be used with its selector, and its image is whole: whether a device takes
// it, only that can tell. Errors: kInvalidArgument, naming the field and what is allowed.
Status CheckDeviceEntry(const tinyserve_selector_device_v1* entry,
                        const tinyserve_selector_v2& table);

// That a plugin brought with this table; null: none.
const tinyserve_selector_device_v1* DeviceEntryOf(const tinyserve_selector_v2* table);

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_DEVICE_ENTRY_H_
